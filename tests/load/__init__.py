"""Many things at once, and what is left afterwards. `make test-load` runs them."""
