"""Starting, watching and ending the processes."""
