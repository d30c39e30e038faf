"""Data sets as LightningDataModules, which yield prompts with reference answers."""

from lit_rlvr.datamodules.base import PromptDataModule
from lit_rlvr.datamodules.code_problems import CodeProblems
from lit_rlvr.datamodules.geometry import Geometry
from lit_rlvr.datamodules.medical_vqa import MedicalVQA
from lit_rlvr.datamodules.mixture import Mixture
from lit_rlvr.datamodules.multiple_choice import MultipleChoice
from lit_rlvr.datamodules.reading.cells import BadRow
from lit_rlvr.datamodules.text_math import TextMath
from lit_rlvr.datamodules.text_to_sql import TextToSQL
from lit_rlvr.datamodules.toys.arithmetic import Arithmetic, MultiStepArithmetic
from lit_rlvr.datamodules.toys.drawn import CellArea, LesionCount, LesionPlace, ShapeBox
from lit_rlvr.datamodules.toys.synthetic_sql import SyntheticSQL

__all__ = [
    "Arithmetic",
    "BadRow",
    "CellArea",
    "CodeProblems",
    "Geometry",
    "LesionCount",
    "LesionPlace",
    "MedicalVQA",
    "Mixture",
    "MultiStepArithmetic",
    "MultipleChoice",
    "PromptDataModule",
    "ShapeBox",
    "SyntheticSQL",
    "TextMath",
    "TextToSQL",
]
