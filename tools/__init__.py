"""Programs for those who work on Pileus; none of them is part of the package."""
