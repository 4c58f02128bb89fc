from .explorer import AttentionExplorer as AttentionExplorer
