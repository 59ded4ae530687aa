"""``python -m polyfed`` is the command ``polyfed``."""

from polyfed.command.app import main

if __name__ == "__main__":
    main()
