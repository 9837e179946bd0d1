"""Light curves in bulk: cleaning, statistics, Fourier series, periods, dm-dt histograms, tables of features."""
