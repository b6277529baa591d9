"""twohop: where does a vision-language model lose a fact that its language model knows?"""

__version__ = "0.1.0"
