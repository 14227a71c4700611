"""A small package that can be run with -m."""
print("selfish is imported as", __name__, __package__)
