"""The papers behind the editors, as BibTeX; an editor's ``cite()`` returns its entry from here.

``references.bib`` at the top of the repository holds exactly these entries, in this order.
"""

from __future__ import annotations

from workbench.errors import OptionError, did_you_mean

__all__ = ["CITATIONS", "bibliography", "cite"]

#: Short name (the editor's, where there is one) → BibTeX entry.
CITATIONS: dict[str, str] = {
    "ROME": """\
@inproceedings{meng2022locating,
  title     = {Locating and Editing Factual Associations in {GPT}},
  author    = {Kevin Meng and David Bau and Alex Andonian and Yonatan Belinkov},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {35},
  year      = {2022},
  eprint    = {2202.05262},
  archivePrefix = {arXiv}
}
""",
    "MEMIT": """\
@inproceedings{meng2023massediting,
  title     = {Mass-Editing Memory in a Transformer},
  author    = {Kevin Meng and Arnab Sen Sharma and Alex Andonian and Yonatan Belinkov and
               David Bau},
  booktitle = {International Conference on Learning Representations},
  year      = {2023},
  eprint    = {2210.07229},
  archivePrefix = {arXiv}
}
""",
    "EMMET": """\
@inproceedings{gupta2024unified,
  title     = {A Unified Framework for Model Editing},
  author    = {Akshat Gupta and Dev Sajnani and Gopala Anumanchipalli},
  booktitle = {Findings of the Association for Computational Linguistics: EMNLP 2024},
  year      = {2024},
  eprint    = {2403.14236},
  archivePrefix = {arXiv}
}
""",
    "NSE": """\
@inproceedings{jiang2025neuron,
  title     = {Neuron-Level Sequential Editing for Large Language Models},
  author    = {Houcheng Jiang and Junfeng Fang and Tianyu Zhang and An Zhang and Ruipeng Wang and
               Tao Liang and Xiang Wang},
  booktitle = {Proceedings of the 63rd Annual Meeting of the Association for Computational
               Linguistics},
  year      = {2025},
  eprint    = {2410.04045},
  archivePrefix = {arXiv}
}
""",
    "AlphaEdit": """\
@inproceedings{fang2025alphaedit,
  title     = {{AlphaEdit}: Null-Space Constrained Knowledge Editing for Language Models},
  author    = {Junfeng Fang and Houcheng Jiang and Kun Wang and Yunshan Ma and Jie Shi and
               Xiang Wang and Xiangnan He and Tat-Seng Chua},
  booktitle = {International Conference on Learning Representations},
  year      = {2025},
  eprint    = {2410.02355},
  archivePrefix = {arXiv}
}
""",
    "CoachHook": """\
@inproceedings{li2024consecutive,
  title     = {Consecutive Batch Model Editing with {HooK} Layers},
  author    = {Shuaiyi Li and Yang Deng and Deng Cai and Hongyuan Lu and Liang Chen and Wai Lam},
  booktitle = {Proceedings of the 2024 Conference on Empirical Methods in Natural Language
               Processing},
  pages     = {13817--13833},
  year      = {2024},
  eprint    = {2403.05330},
  archivePrefix = {arXiv}
}
""",
    "GRACE": """\
@inproceedings{hartvigsen2023aging,
  title     = {Aging with {GRACE}: Lifelong Model Editing with Discrete Key-Value Adaptors},
  author    = {Thomas Hartvigsen and Swami Sankaranarayanan and Hamid Palangi and Yoon Kim and
               Marzyeh Ghassemi},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {36},
  year      = {2023},
  eprint    = {2211.11031},
  archivePrefix = {arXiv}
}
""",
    "MEND": """\
@inproceedings{mitchell2022fast,
  title     = {Fast Model Editing at Scale},
  author    = {Eric Mitchell and Charles Lin and Antoine Bosselut and Chelsea Finn and
               Christopher D. Manning},
  booktitle = {International Conference on Learning Representations},
  year      = {2022},
  eprint    = {2110.11309},
  archivePrefix = {arXiv}
}
""",
    "KE": """\
@inproceedings{decao2021editing,
  title     = {Editing Factual Knowledge in Language Models},
  author    = {Nicola {De Cao} and Wilker Aziz and Ivan Titov},
  booktitle = {Proceedings of the 2021 Conference on Empirical Methods in Natural Language
               Processing},
  pages     = {6491--6506},
  year      = {2021},
  eprint    = {2104.08164},
  archivePrefix = {arXiv}
}
""",
    "ENN": """\
@inproceedings{sinitsin2020editable,
  title     = {Editable Neural Networks},
  author    = {Anton Sinitsin and Vsevolod Plokhotnyuk and Dmitry Pyrkin and Sergei Popov and
               Artem Babenko},
  booktitle = {International Conference on Learning Representations},
  year      = {2020},
  eprint    = {2004.00345},
  archivePrefix = {arXiv}
}
""",
    "FTL": """\
@misc{zhu2020modifying,
  title     = {Modifying Memories in Transformer Models},
  author    = {Chen Zhu and Ankit Singh Rawat and Manzil Zaheer and Srinadh Bhojanapalli and
               Daliang Li and Felix Yu and Sanjiv Kumar},
  year      = {2020},
  eprint    = {2012.00363},
  archivePrefix = {arXiv}
}
""",
    "FTEWC": """\
@article{kirkpatrick2017overcoming,
  title     = {Overcoming catastrophic forgetting in neural networks},
  author    = {James Kirkpatrick and Razvan Pascanu and Neil Rabinowitz and Joel Veness and
               Guillaume Desjardins and Andrei A. Rusu and Kieran Milan and John Quan and
               Tiago Ramalho and Agnieszka Grabska-Barwinska and Demis Hassabis and
               Claudia Clopath and Dharshan Kumaran and Raia Hadsell},
  journal   = {Proceedings of the National Academy of Sciences},
  volume    = {114},
  number    = {13},
  pages     = {3521--3526},
  year      = {2017},
  eprint    = {1612.00796},
  archivePrefix = {arXiv}
}
""",
    "forgetting at scale": """\
@inproceedings{gupta2024model,
  title     = {Model Editing at Scale leads to Gradual and Catastrophic Forgetting},
  author    = {Akshat Gupta and Anurag Rao and Gopala Anumanchipalli},
  booktitle = {Findings of the Association for Computational Linguistics: ACL 2024},
  year      = {2024},
  eprint    = {2401.07453},
  archivePrefix = {arXiv}
}
""",
    "Llama-3 batch sizes": """\
@misc{yoon2024bigger,
  title     = {Is Bigger Edit Batch Size Always Better? An Empirical Study on Model Editing with
               {Llama-3}},
  author    = {Junsang Yoon and Akshat Gupta and Gopala Anumanchipalli},
  year      = {2024},
  eprint    = {2405.00664},
  archivePrefix = {arXiv}
}
""",
}


def cite(name: str) -> str:
    """The BibTeX entry of an editor or study.

    Raises:
        OptionError: if there is no entry of this name.

    Example:
        >>> cite("ROME").splitlines()[0]
        '@inproceedings{meng2022locating,'
    """
    if name not in CITATIONS:
        raise OptionError(f"there is no citation for {name!r}." + did_you_mean(name, CITATIONS))
    return CITATIONS[name]


def bibliography() -> str:
    """All entries, as they stand in ``references.bib``."""
    return "\n".join(CITATIONS.values())
