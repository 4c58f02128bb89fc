from .result import Result as Result, Section as Section, rows_of as rows_of, slug as slug
