"""Several seeds of one task, and the table of all of them."""
