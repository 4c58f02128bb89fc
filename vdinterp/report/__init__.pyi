from .page import render as render
from .writing import write as write
