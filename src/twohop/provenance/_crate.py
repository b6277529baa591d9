"""x."""


def export(folder, records, with_data):
    return {}
