"""The verbs, one file each. A stage reads artefacts and writes one; below this package nothing sees the
configuration.
"""
