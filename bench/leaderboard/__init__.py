"""Boards: pages computed from published result lines alone. Needs neither torch nor plugins."""

from bench.leaderboard.pages import build, check, write
from bench.leaderboard.tables import Board, boards

__all__ = ["Board", "boards", "build", "check", "write"]
