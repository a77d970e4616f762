module holdfast.dev/example

go 1.22

require (
	google.golang.org/grpc v1.72.2
	google.golang.org/protobuf v1.36.6
)
