"""What every other package may use: errors, configs, files, the command line."""
