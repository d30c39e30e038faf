"""Data sets as LightningDataModules: each yields prompts with reference answers."""

from datamodules.arithmetic import Arithmetic
from datamodules.base import PromptDataModule
from datamodules.cells import CellArea
from datamodules.code_problems import CodeProblems
from datamodules.geometry import Geometry
from datamodules.lesions import LesionCount, LesionPlace
from datamodules.medical_vqa import MedicalVQA
from datamodules.multi_step_arithmetic import MultiStepArithmetic
from datamodules.multiple_choice import MultipleChoice
from datamodules.reading.rows import BadRow
from datamodules.synthetic_sql import SyntheticSQL
from datamodules.text_math import TextMath
from datamodules.text_to_sql import TextToSQL
from datamodules.triangles import TriangleProblem

__all__ = [
    "Arithmetic",
    "BadRow",
    "CellArea",
    "CodeProblems",
    "Geometry",
    "LesionCount",
    "LesionPlace",
    "MedicalVQA",
    "MultiStepArithmetic",
    "MultipleChoice",
    "PromptDataModule",
    "SyntheticSQL",
    "TextMath",
    "TextToSQL",
    "TriangleProblem",
]
