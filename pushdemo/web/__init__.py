"""What `config.include("pushdemo")` adds to a Pyramid application."""
