/** Subscriptions on command: what a test asks for comes in as an object, what happens goes out as one. */
export function drive(subscribe, send) {
  const subscriptions = new Map();
  const commands = {
    subscribe({ name, url, options }) {
      const say = (kind) => (value) => send({ name, [kind]: value ?? true });
      const onmessage = (message) => {
        if (message.content instanceof Uint8Array) message.content = [...message.content];
        say("message")({ ...message, lastEventId: subscriptions.get(name).lastEventId });
        if (options.closeAfter === message.id) subscriptions.get(name).close();
        if (options.throwAt === message.id) throw new Error("the page's own mistake");
      };
      try {
        subscriptions.set(name, subscribe(url, { ...options, onmessage, onstate: say("state"), onreset: say("reset") }));
      } catch (error) {
        send({ name, thrown: String(error) });
      }
    },
    close({ name }) {
      subscriptions.get(name).close();
      send({ name, closed: subscriptions.get(name).lastEventId });
    },
  };
  return (command) => commands[command.do](command);
}
