"""Finished runs side by side, as tables of means over seeds.

A row is a method or a variant of it: runs whose configs differ only in `seed` or in what does not change a result. A
column is one metric under one setup, which is everything that decides whether two numbers compare, from the data set
to how clips were drawn. Runs of one method that were given different things to learn from share no table. What differs
in any of it is never averaged.

Reading: `settings`, `columns`, `runs`, `folds`. Layout: `assumptions`, `rows`, `controls`, `tables`. Output: `text`,
`markdown`, `records`, `figures`, `page`.
"""
