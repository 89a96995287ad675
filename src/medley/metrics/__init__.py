"""What a ranking is worth, as pure functions of arrays.

ranking.py           relevance: one number per user (ndcg, recall, …), and errors of predicted ratings
bootstrap.py         how far a mean over users can be trusted: intervals, and the paired comparison of two rankings
beyond_accuracy.py   what else the lists are: coverage, Gini, novelty, diversity, popularity
"""
