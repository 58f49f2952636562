"""Applications that the tests serve beside the demo; each module has a `main` for an ini's `use = call:...:main`."""
