from .files import (
    ABANDONED as ABANDONED,
    SAVED as SAVED,
    Content as Content,
    as_path as as_path,
    digest as digest,
    find as find,
    is_inside as is_inside,
    outdated as outdated,
    settle as settle,
    tensors_file as tensors_file,
    write as write,
    write_files as write_files,
    write_tensors as write_tensors,
)
from .keys import code_of as code_of, fingerprint as fingerprint, key_of as key_of
from .ledger import Ledger as Ledger
from .records import Records as Records
