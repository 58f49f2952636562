"""The views of the demo application; `config.scan("pushdemo.demo.views")` finds them."""
