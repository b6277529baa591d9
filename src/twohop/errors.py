"""What a user can get wrong: one exception tree whose message says what, where, and what to do."""


class TwohopError(Exception):
    """A fault that a user can cause or mend; the command line prints it without a traceback and exits with code 2."""

    def __init__(self, what: str, where: str = "", todo: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.todo = what, where, todo

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.todo:
            lines.append(f"  do:    {self.todo}")
        return "\n".join(lines)


class ConfigError(TwohopError):
    """params.yaml cannot be used as it is."""


class ArtifactError(TwohopError):
    """A file of the pipeline is missing, altered, or not what its record says."""


class ModelError(TwohopError):
    """A model folder, a site, a token group or a position does not fit the model."""


class DataError(TwohopError):
    """An entity table, a fact or a picture cannot be used."""
