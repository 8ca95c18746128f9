"""Speed that must be shown: each benchmark prints its numbers, the bars of the project, and ratios to references."""
