from ._build import KINDS as KINDS, Organism as Organism, build as build
