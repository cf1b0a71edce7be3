"""`python -m dpserver` is the command `dpserver`."""

from dpserver.cli.app import main

if __name__ == "__main__":
    main()
