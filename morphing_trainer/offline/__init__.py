"""Operations on a model on disk, tensor by tensor, without a trainer."""
