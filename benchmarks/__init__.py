"""How fast the project is, beside what the hardware allows and beside others' ways."""
