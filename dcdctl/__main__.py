"""`python -m dcdctl`."""

from dcdctl.cli.app import main

if __name__ == "__main__":
    main()
