"""The `safelight` command. Nothing heavy is imported until a command runs."""
