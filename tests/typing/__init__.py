"""What type checkers must see: programs that are checked, and run."""
