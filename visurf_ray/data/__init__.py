"""How data lie on the disk: tables, their rows, stored images."""
