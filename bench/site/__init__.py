"""The site: boards, curves, pictures, methods and runs as web pages, made from the same lines as the boards.

Written by hand (Jinja templates, one style sheet, one script) and not with a site generator: nearly everything on it is a table or a
figure of data, which a generator would leave to us anyway, and what it brings besides (fonts and scripts from other hosts, a
search index that needs a server) is what this site must do without. It opens from a folder, asks no other host for
anything, and every text from a plugin is escaped by the templates. Needs neither torch nor plugins.
"""

from bench.site.build import build

__all__ = ["build"]
