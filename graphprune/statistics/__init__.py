"""What is measured on inputs: moments of what consumers read, gathered in one walk."""
