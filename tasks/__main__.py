"""Show the built-in tasks.

    python -m tasks              # four examples of every written task
    python -m tasks FILE.png     # every drawn task, a row: fourteen examples, then four prompts
"""

import argparse

from tasks import sheet, written


def main():
    """Print texts, or draw pictures into a file."""
    parser = argparse.ArgumentParser("python -m tasks", description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", metavar="FILE.png", help="draw the image tasks")
    args = parser.parse_args()
    if args.file:
        try:
            sheet.write_png(sheet.pictures().repeat(2, 0).repeat(2, 1), args.file)
        except OSError as error:
            parser.error(f"{args.file} cannot be written: {error.strerror}")
        return
    for task in written.TASKS:
        print(task)
        for text, label in zip(*written.sample(task, 4, 0)):
            print(f"  {label}  {text if isinstance(text, str) else '  |  '.join(text)}")
    print("the eight image tasks: python -m tasks FILE.png")


if __name__ == "__main__":
    main()
