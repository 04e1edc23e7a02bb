"""How the bundled demonstration checkpoint was made, and how it is measured."""
