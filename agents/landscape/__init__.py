"""The landscape of a table: where its masks stand, what each toggle does, and how much of it is noise."""
