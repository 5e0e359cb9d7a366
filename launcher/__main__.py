"""`python -m launcher` is `swiftlaunch`."""

from launcher.cli import main

if __name__ == "__main__":
    main()
