"""Data sets as LightningDataModules: each yields prompts with reference answers."""

from lit_rlvr.datamodules.arithmetic import Arithmetic
from lit_rlvr.datamodules.base import PromptDataModule
from lit_rlvr.datamodules.cells import CellArea
from lit_rlvr.datamodules.code_problems import CodeProblems
from lit_rlvr.datamodules.geometry import Geometry
from lit_rlvr.datamodules.lesions import LesionCount, LesionPlace
from lit_rlvr.datamodules.medical_vqa import MedicalVQA
from lit_rlvr.datamodules.multi_step_arithmetic import MultiStepArithmetic
from lit_rlvr.datamodules.multiple_choice import MultipleChoice
from lit_rlvr.datamodules.reading.rows import BadRow
from lit_rlvr.datamodules.synthetic_sql import SyntheticSQL
from lit_rlvr.datamodules.text_math import TextMath
from lit_rlvr.datamodules.text_to_sql import TextToSQL
from lit_rlvr.datamodules.triangles import TriangleProblem

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
