"""The C library's sources; ``embed`` runs in its build."""
