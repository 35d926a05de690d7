"""What each command takes: one file each, which imports click alone and the command itself when it is called."""
