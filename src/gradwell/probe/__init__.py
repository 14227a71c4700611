"""The only floor that touches torch's hooks and runs scripts.

Everything that is patched or hooked while a script runs is listed in `probe.clock.PATCHED`.
"""
