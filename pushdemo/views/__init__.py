"""The views of the demo application; `config.scan("pushdemo.views")` finds them."""
