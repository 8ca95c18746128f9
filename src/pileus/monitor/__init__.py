"""Monitors: appliances are watched, and mended by policies; every action is written before it is done."""
