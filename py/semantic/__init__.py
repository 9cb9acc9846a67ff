"""Semantic maps: the class of each pixel of an image. Torch, numpy and Pillow only.

    palettes.py        Palette: names and colours in label order; those of the data sets (palette_data.py) and the playground
    semantic_map.py    SemanticMap: labels [b, h, w] with their palette, the type between the nodes
    snapping.py        coloured image -> map, in spite of JPEG noise and soft edges; the palette of an image
    masks.py           named masks -> map; classes of a map -> mask
    remap.py           rules and names -> other classes, other palettes
    preview.py         legend image and coverage in words

Labels are 0..254, VOID (255) means no class. Nothing writes to a map once it exists.
"""
