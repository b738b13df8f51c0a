"""How data are stored on disk: tables, their rows, encoded images."""
