"""Mutants: the package with one small fault each, which some test has to notice. `make mutants` runs them."""
