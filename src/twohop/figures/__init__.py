"""Figures and the numbers they show: the tables of a study, its summary, figures, captions from numbers."""

from twohop.figures import words
from twohop.figures._captions import CAPTIONS, depth_words, vlms
from twohop.figures._cited import END, MIDDLE, START, cited
from twohop.figures._draw import FIGURES, INTERVENTIONS, STRATEGIES
from twohop.figures._headline import headline
from twohop.figures._look import save, styled
from twohop.figures._pairs import INSTRUMENTS
from twohop.figures._resolution import METHODS
from twohop.figures._study import Study, load_study
from twohop.figures._summary import CONDITIONS, pair, restore_order, summarise

__all__ = [
    "CAPTIONS",
    "CONDITIONS",
    "END",
    "FIGURES",
    "INSTRUMENTS",
    "INTERVENTIONS",
    "METHODS",
    "MIDDLE",
    "START",
    "STRATEGIES",
    "Study",
    "cited",
    "depth_words",
    "headline",
    "load_study",
    "pair",
    "restore_order",
    "save",
    "styled",
    "summarise",
    "vlms",
    "words",
]
