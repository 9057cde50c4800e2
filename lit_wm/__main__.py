"""``python -m lit_wm`` is ``lit-wm``."""

from lit_wm.cli.main import main

if __name__ == "__main__":
    main()
