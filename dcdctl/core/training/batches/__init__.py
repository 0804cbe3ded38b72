"""The batches of a training: candidate lists, or all pairs of some images and captions, with the teacher's scores.

A batch is a function of the seed and the step alone, so a run resumes from nothing but its step. `CandidateLists`
draws the negatives of each query; `AllPairs` groups images that share scored pairs (`image_batches`), so that they
are each other's hard negatives. `CorpusBatches` reads the pairs of a step, `StreamBatches` reads a stream.

Shape letters: B lists, N candidates of a list with the positive in column 0, Q x G all pairs of a batch's images and
captions with the positives on the diagonal; R rows and C columns stand for either.
"""
